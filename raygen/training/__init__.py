"""FACES and LATENTS to a checkpoint: trainer, data, recipe, losses, history."""
