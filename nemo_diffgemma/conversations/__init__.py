"""Files of conversations, in the forms that people have them: the one reader for training, evaluation and builds."""
