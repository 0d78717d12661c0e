// Errors, with a kind for programs and a sentence for users.

export type UmbelErrorKind =
  | 'no-webrtc' | 'clock' | 'consensus' | 'network' | 'storage' | 'exit' | 'engine' | 'target' | 'certificate' | 'refused' | 'closed'
  | 'bad-input';

/** An error of this library. */
export class UmbelError extends Error {
  override readonly name = 'UmbelError';
  readonly kind: UmbelErrorKind;

  constructor(kind: UmbelErrorKind, message: string) {
    super(message);
    this.kind = kind;
  }
}

/** The result of a promise of the core. A rejection becomes an {@link UmbelError}. */
export async function fromCore(promise: Promise<unknown>): Promise<unknown> {
  try {
    return await promise;
  } catch (error) {
    throw asError(error);
  }
}

/** An error of the core as an {@link UmbelError}. */
export function asError(error: unknown): UmbelError {
  if (error instanceof UmbelError) return error;
  if (typeof error === 'object' && error !== null && 'kind' in error && 'message' in error) {
    return new UmbelError(error.kind as UmbelErrorKind, String(error.message));
  }
  return new UmbelError('closed', 'This page has failed; reload it.');
}
