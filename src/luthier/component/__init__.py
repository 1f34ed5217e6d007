"""The finetune component's steps: each reads folders and writes one, and can be redone alone."""
