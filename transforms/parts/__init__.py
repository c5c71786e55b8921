"""Parts: the Parquet files of embeddings and failures, their schemas, footers and digests."""
