"""The training side: corpora of token ids, pretraining on emojis, metrics. Imports no Beam."""
