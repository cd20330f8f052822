"""What people run: run files, commands, encoders, objectives, training, embedding, evaluation."""

__version__ = "0.1.0"
