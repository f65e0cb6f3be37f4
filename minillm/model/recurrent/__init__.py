"""Layers that keep one size of whatever came before, where attention keeps a position more for each token.

Read in this order: `stateful.py` (how the tokens of a pass come to what is kept, and the short convolution),
`delta.py` (Gated DeltaNet), `channels.py` (Kimi Delta Attention), `state_space.py` (Mamba-2), `selective.py` (Mamba),
`gated.py` (RG-LRU), `conv.py` (a gated convolution alone), `added.py` (one that is added to what it is made of),
`beside.py` (a state space next to attention), `fronted.py` (behind a block that layers share), `states.py` (the cache).
"""
