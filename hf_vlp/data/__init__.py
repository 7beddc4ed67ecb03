"""Data: from files, shards and the Hub to batches.

`sources` opens records, `collators` turns them into batches and drops bad samples by policy, `image_io` decodes
pictures, `annotations` reads published caption files, `scenes` draws data, `tokenization` trains tokenizers.
Modules are imported by name; importing this package loads none of them.
"""
