"""Pictures and sounds: from what stands in a message to embeddings in a prompt. Read in this order: `sources.py` (what
users give), `pictures.py` and `sound.py` (decoded, within limits), `settings.py` (what a checkpoint says of sizes and
colours), `places.py` (where tokens stand), `prompts.py` (text, placeholders and embeddings put together) and `tower.py`
(the weights, which are loaded when there is something to see)."""
