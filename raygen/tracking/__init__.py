"""Copies of numbers and sheets for the tools that people watch runs with: TensorBoard, MLflow, Weights & Biases.

What a run writes into its own folder does not depend on them. Each tool is one module, which imports its package when
it is used.
"""
