"""How a person looks at a backward pass: tables and figures."""

from fbp.report.figures import (
    confusion_matrix,
    curves,
    gradient_flow,
    image_page,
    learning_curve,
    parameter_names,
    phase_diagram,
    text_page,
)
from fbp.report.tables import compare_gradients, gradient_table

__all__ = [
    "compare_gradients",
    "confusion_matrix",
    "curves",
    "gradient_flow",
    "gradient_table",
    "image_page",
    "learning_curve",
    "parameter_names",
    "phase_diagram",
    "text_page",
]
