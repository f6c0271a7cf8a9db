"""How a person looks at a backward pass: tables and figures."""

from fbp.report.figures import (
    attention_maps,
    boxes_page,
    coloured_words,
    confusion_matrix,
    curves,
    film,
    gradient_flow,
    heated,
    image_page,
    image_rows,
    learning_curve,
    paired_bars,
    parameter_names,
    phase_diagram,
    score_strips,
    text_page,
)
from fbp.report.tables import compare_gradients, gradient_table

__all__ = [
    "attention_maps",
    "boxes_page",
    "coloured_words",
    "compare_gradients",
    "confusion_matrix",
    "curves",
    "film",
    "gradient_flow",
    "gradient_table",
    "heated",
    "image_page",
    "image_rows",
    "learning_curve",
    "paired_bars",
    "parameter_names",
    "phase_diagram",
    "score_strips",
    "text_page",
]
