"""Find out whether an evaluation failed, and how much information a latent has about its image."""
