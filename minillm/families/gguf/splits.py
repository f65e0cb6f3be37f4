"""How texts are split before their bytes are joined to tokens, by what `tokenizer.ggml.pre` of a GGUF file calls it.

Each is a list of regular expressions, used one after the other: what matches is a piece of its own, and so is what lies
between. They are those of the published tokenizers.
"""

WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # of GPT-2
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}"
QWEN2 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST}"
MARKS = REST.replace(r"\p{L}", r"\p{L}\p{M}")
QWEN35 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|{MARKS}"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+X|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*X"
GPT4O = CASED.replace("X", f"{CONTRACTIONS}?") + rf"|\p{{N}}{{1,3}}|{SLASHED}"
TEKKEN = CASED.replace("X", "") + rf"|\p{{N}}|{SLASHED}"
DEEPSEEK = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"]
DEEPSEEK3 = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
]
# Expressions whose matches are pieces of their own, one after the other; and the names of each such rule.
RULES: list[tuple[str, list[str]]] = [
    ("llama-bpe llama3 llama-v3 falcon3 pixtral dbrx smaug-bpe chatglm-bpe glm4", [LLAMA3]),
    ("qwen2 deepseek-r1-qwen stablelm2 megrez", [QWEN2]),
    ("qwen35", [QWEN35]),
    ("gpt-2 phi-2 mpt olmo jais", [WORDS]),
    ("starcoder refact command-r smollm codeshell exaone minerva-7b", [r"\p{N}", WORDS]),
    ("gpt-4o llama4", [GPT4O]),
    ("tekken", [TEKKEN]),
    ("falcon", [r"[\p{P}$+<=>^~|`]+", WORDS, "[0-9][0-9][0-9]"]),
    ("deepseek-llm", [*DEEPSEEK, r"\p{N}+"]),
    ("deepseek-coder", [*DEEPSEEK, r"\p{N}"]),
    ("deepseek-v3", DEEPSEEK3),
]
SPLITS = {name: expressions for names, expressions in RULES for name in names.split()}
# A piece that is a token stays whole, and texts begin with BOS where nothing is said.
WHOLE = "llama3 llama-v3 llama-bpe falcon3 pixtral tekken".split()
