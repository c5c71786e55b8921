"""What the jobs in `pipelines` are made of: readers, the image policy, the embedder and the writers."""
