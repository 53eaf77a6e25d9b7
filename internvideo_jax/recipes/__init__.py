"""What recipes share: presets of students and fine-tuning, evaluators, a recipe in small."""
