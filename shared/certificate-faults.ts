// Why a certificate is not believed: OpenSSL's codes in words that go on after "the certificate".

const WHY: Readonly<Record<string, string>> = {
  CERT_REVOKED: 'is revoked',
  CERT_HAS_EXPIRED: 'has expired',
  CERT_NOT_YET_VALID: 'is not valid yet: do the clocks of both hosts agree?',
  DEPTH_ZERO_SELF_SIGNED_CERT: 'is of another authority',
  SELF_SIGNED_CERT_IN_CHAIN: 'is of another authority',
  UNABLE_TO_GET_ISSUER_CERT: 'is of another authority',
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: 'is of another authority',
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: 'is of another authority',
  CERT_SIGNATURE_FAILURE: 'is of another authority',
  INVALID_PURPOSE: 'is not one for this end of a connection',
  ERR_TLS_CERT_ALTNAME_INVALID: 'is for other names',
  UNABLE_TO_GET_CRL: 'cannot be looked up: the list of revoked ones is of another authority',
  CRL_HAS_EXPIRED: 'cannot be looked up: the list of revoked ones has expired',
}

/** @param code as `authorizationError` of a TLSSocket has it */
export function whyNotBelieved(code: string): string {
  return WHY[code] ?? `cannot be verified (${code})`
}
