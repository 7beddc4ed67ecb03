"""Data: from files, shards and the Hub to batches.

`sources` opens records and `columns` gives them the columns of their type; `collators` (captions) and
`task_collators` (the other tasks) turn them into batches and drop bad samples by policy, with `masking` and `augment`;
`image_io` decodes pictures, `annotations` reads published caption files, `scenes` draws data, `tokenization` trains
tokenizers, `answers` numbers answers.
Modules are imported by name; importing this package loads none of them.
"""
