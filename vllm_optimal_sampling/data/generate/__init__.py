"""From a data set to training rows sampled from q*: `optimal-sampling generate`.

inputs     rows of JSONL, JSON, CSV, parquet, folders and Hugging Face data sets, streamed, with their line numbers
templates  a row becomes two prompts: the teacher's, and theta's without the privileged columns
jobs       which samples of which rows are still to be drawn
run        keeps a window of requests in flight with a sampler: `engine` (in this machine), `endpoint` (a server)
output     finished rows are appended to a JSONL file, which is also what a later run resumes from
formats    that file as parquet or as a Hugging Face data set, at the end
"""
