"""What a model is, from its config.json: kinds that can't be trained here, a small copy, and how that copy behaves."""
