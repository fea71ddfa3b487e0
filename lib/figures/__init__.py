"""Every matplotlib picture: values in, one picture file out."""
