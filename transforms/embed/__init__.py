"""Work units to committed embeddings, and a model handler for Beam's RunInference."""
