"""What more can be spent on finding out whether an evaluation failed, and what a latent tells of its image."""
