"""The steps of `train` and `finetune`: train, compare and save heads and backbones."""
