"""What a trained network says of anybody's image files."""
