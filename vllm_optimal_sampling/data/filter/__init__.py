"""`optimal-sampling filter`: keep the sampled rows that are fit to train on.

rows  ->  rules, in order (rules: answers, lengths, duplicates)  ->  one file, put in place when it is complete
"""
