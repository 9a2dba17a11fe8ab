"""Faces: detection and tracking, landmarks, lip masks, identity, crops and image quality."""
