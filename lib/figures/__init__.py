"""All matplotlib figures: each function takes values and returns a figure, which `style.save` writes."""
