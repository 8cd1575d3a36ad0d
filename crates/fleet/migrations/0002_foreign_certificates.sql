-- Certificates of other CAs beside those of the fleet CA. Their serials are unique per issuer only;
-- what recognises a certificate is its fingerprint, as before.

DROP INDEX certificates_serial;
CREATE INDEX certificates_serial ON certificates (serial);

-- What the device sends behind its certificate, PEM. NULL: the fleet CA, which signed it.
ALTER TABLE certificates ADD COLUMN chain TEXT;
