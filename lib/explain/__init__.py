"""Explanations of a network's answers: functions of a model and its inputs that leave both unchanged."""
