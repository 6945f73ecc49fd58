"""Model cards, Markdown, filled from what a bundle knows of itself."""

from __future__ import annotations

from collections.abc import Mapping

from torchmoji_core.bundle import Bundle

_HEADINGS = {
    "top1": "top-1",
    "top5": "top-5",
    "macro_f1": "macro F1",
    "macro_f1_frequent": "macro F1, frequent classes",
    "calibration_error": "calibration error",
    "f1": "F1",
}


def emoji_model_card(bundle: Bundle, prose: str) -> str:
    """The card of a pretrained model.

    Args:
        bundle: with the provenance that `pipelines.pretrain` gives it.
        prose: Markdown that no machine can know: purpose, origin of the data, limits.
    """
    size, facts = bundle.dimensions, bundle.provenance
    teachers = " and ".join(f"{name} ({fingerprint[:12]})" for fingerprint, name in facts["teachers"].items())
    share = f"{facts['options']['teacher_weight']:.0%}"
    taught = f"; {share} of each target are probabilities of {teachers}" if teachers else ""
    start = f", from the weights of {next(iter(facts['start'].values()))}" if facts.get("start") else ""
    paragraphs = [
        f"# {bundle.name}",
        f"DeepMoji's architecture: embedding {size.embedding}, two bidirectional LSTMs of {size.hidden} a direction, "
        f"tweet embedding of {size.channels},\n{size.classes} emoji classes in DeepMoji's order, a vocabulary of "
        f"{size.vocabulary:,} tokens. It reads {bundle.maxlen} tokens of a text.\n"
        "Stored as float16, run in float32.",
        prose.strip(),
        f"**Training.** {facts['options']['epochs']:g} epochs of {facts['data']}{start}, a text counting once for each "
        f"of its emojis;\nAdam on a cosine schedule, moving average of the weights{taught}. Then\n"
        f"a tilt of {facts['options']['tilt']:g} towards rare emojis and a temperature of {facts['temperature']:g}, "
        "the one that fits the validation texts. All options stand in config.json.",
        _table(facts["scores"], facts["texts"]),
        "Over the first 50,000 texts of a split that has more. Frequent classes are those of 1,000 texts or more.",
    ]
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def classifier_card(bundle: Bundle) -> str:
    """The card of a classifier, from the provenance that fine-tuning gives it."""
    facts = bundle.provenance
    base = next(iter(facts["base"])) if facts["base"] else "random weights"
    several = "several, or none, can hold of a text" if bundle.multi_label else "one of each text"
    thresholds = ", ".join(f"{name} {value:.2f}" for name, value in facts["thresholds"].items())
    alone = ""
    if len(bundle.classes) == 2 and not bundle.multi_label:
        alone = f" With two classes it is that of {bundle.classes[1]!r} alone."
    paragraphs = [
        f"# {bundle.name}",
        f"A classifier of {len(bundle.classes)} classes ({several}): {', '.join(bundle.classes)}.",
        f"Trained with method `{facts['options']['method']}` from {base} on {facts['data']}; it reads {bundle.maxlen} "
        f"tokens of a text, {facts['words_added']:,} words were added to the vocabulary.",
        _table(facts["scores"], facts["texts"]),
        "F1 is the mean over the classes of one against the rest, each predicted from a probability on that was\n"
        f"chosen on the validation texts: {thresholds}.{alone}",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _table(scores: Mapping[str, Mapping[str, float]], texts: Mapping[str, int]) -> str:
    names = list(next(iter(scores.values())))
    rows = [["split", "texts", *(_HEADINGS.get(name, name) for name in names)], ["---"] * (len(names) + 2)]
    rows += [[split, f"{texts[split]:,}", *(f"{part[name]:.3f}" for name in names)] for split, part in scores.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
