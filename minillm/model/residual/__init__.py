"""What a layer does with the residual stream: `block.py` adds attention and feed-forward to it; `per_layer.py` and
`streams.py` are what some models add besides, or have in its place."""
