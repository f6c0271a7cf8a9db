"""How a person looks at a backward pass: tables and figures."""

from fbp.report.figures import (
    boxes_page,
    confusion_matrix,
    film,
    gradient_flow,
    heated,
    image_page,
    image_rows,
    learning_curve,
    paired_bars,
    parameter_names,
    score_strips,
)
from fbp.report.tables import compare_gradients, gradient_table

__all__ = [
    "boxes_page",
    "compare_gradients",
    "confusion_matrix",
    "film",
    "gradient_flow",
    "gradient_table",
    "heated",
    "image_page",
    "image_rows",
    "learning_curve",
    "paired_bars",
    "parameter_names",
    "score_strips",
]
