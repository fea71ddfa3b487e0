"""Steps of the scripts, which combine data, networks, training, explanations and figures."""
