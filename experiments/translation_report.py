"""How good translations are, and what a run of `experiments.translation` shows of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sacrebleu  # pyright: ignore[reportMissingImports]

from experiments.decoding import looks
from experiments.harness import Run, console
from experiments.parallel_texts import Pair
from experiments.tokens import encode
from experiments.translators import Translator
from fbp import report


def quality(translated: Sequence[str], truth: Sequence[str], prefix: str = "") -> dict[str, Any]:
    """BLEU (Papineni et al. 2002) and chrF (Popović 2015), with the signatures that say how they were computed (Post 2018)."""
    metrics = {}
    for name, metric in {"bleu": sacrebleu.BLEU(), "chrf": sacrebleu.CHRF()}.items():
        metrics[prefix + name] = float(metric.corpus_score(list(translated), [list(truth)]).score)
        if not prefix:
            metrics[f"{name}_signature"] = str(metric.get_signature())
    return metrics


def show(run: Run, test: Sequence[Pair], *translated: Sequence[str]) -> None:
    """All translations, by the model, by words and by phrases, in a file, and four of them on the terminal."""
    titles = "English", "French, by a person", "by the model", "word by word", "by phrases"
    rows = [(p.english, p.french, *said) for p, *said in zip(test, *translated, strict=True)]
    texts = ["\n".join(f"{title}: {text}" for title, text in zip(titles, row, strict=True)) for row in rows]
    run.path("translations.txt").write_text("\n\n".join(texts) + "\n")
    console.print("\n\n".join(texts[:: max(1, len(texts) // 4)][:4]), markup=False, soft_wrap=True)


def draw_attention(run: Run, model: Translator, params, tokenizer, test: Sequence[Pair], translated) -> None:
    """Where the model looks as it writes, for two test sentences of about ten words."""
    chosen = sorted(range(len(test)), key=lambda i: abs(len(test[i].english.split()) - 10))[:2]
    name = lambda token: tokenizer.decode([token]) or tokenizer.id_to_token(token)
    maps = [
        (looks(model, params, source, target), [*map(name, target)], [*map(name, source)])
        for source, target in encode(tokenizer, [test[i]._replace(french=translated[i]) for i in chosen])
    ]
    report.attention_maps(run.path("attention.png"), maps, "where the model looks for each token that it writes")
