"""The `context` codec: `codec.py` is the stage, `format.py` its bytes, `encoding.py` and `search.py` choose them."""
