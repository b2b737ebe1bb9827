"""Several servers of OpenAI's protocol behind one address: replicas on a Ray cluster, each with a decoder.

Needs the packages of `tts-kernels[serve]` and `tts-kernels[ray]`.
"""
