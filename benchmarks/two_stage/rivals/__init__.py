"""Other libraries on this benchmark: an adapter each, run in an environment of its own.

They know one model, one loss and one data set. What they are given is the fine-tuned model with both heads over one
trunk (`both.py`): the training loss is that of the pretraining examples through the pretraining's own head, the query's
loss that of the test examples through the fine-tuned head. So they score as if one training had ended here.
"""
