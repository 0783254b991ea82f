"""Settings that fit a data set, chosen from the sizes of its images and boxes, with reasons."""
