"""Find out whether an evaluation failed, and how much a latent tells about its image."""
