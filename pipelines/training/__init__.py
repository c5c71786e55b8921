"""What `train` and `finetune` do: heads and backbones trained, compared and saved."""
