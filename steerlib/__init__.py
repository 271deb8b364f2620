"""Personalised steering of a frozen language model at decoding time: the library behind the notebooks.

Rooms, each importing only from those before it: embedded, tables, progress, models, toxicity, profiles, vectors,
generation, evaluation, figures, explorer, runner.
"""
