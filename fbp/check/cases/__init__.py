"""The cases, a module for each chapter of `fbp.rules`, and one for the layers."""
