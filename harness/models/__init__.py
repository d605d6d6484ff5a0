"""Models as data: graphs of stages, the ops that they are made of, and the table of models."""
