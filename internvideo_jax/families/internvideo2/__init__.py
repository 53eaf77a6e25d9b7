"""InternVideo2, stage 1: encoder, student, classifier, teachers (Wang et al. 2024)."""
