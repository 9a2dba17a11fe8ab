"""Picture quality of a clip: black bars, text, hands over the mouth, BRISQUE."""
