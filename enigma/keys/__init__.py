"""Keys: where data keys come from and who may open them. Nothing here touches a provider.

kdf.py     passphrase to key material, its bounds, and which passphrases are refused
slots.py   slots and data keys as stored objects; the hybrid of Argon2id and ML-KEM-768
local.py   the keystore file: atomic, rebuilt from the stored objects whenever it is lost
"""
