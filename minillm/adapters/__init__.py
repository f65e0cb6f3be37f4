"""LoRA adapters in PEFT's format: `config.py` says what adapter_config.json means, `adapter.py` what an adapter is,
`build.py` makes one anew or of a folder, `weights/adapter.py` has the names, `model/lora/` the arithmetic."""
