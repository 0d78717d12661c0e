// What a page keeps from one visit to the next: a few entries of bytes, by name, in IndexedDB. Where the browser denies that,
// or its space is full, in memory, which lasts as long as the page.

const DATABASE = 'umbel';
const ENTRIES = 'entries';
/** A database that another tab is changing may keep us waiting. */
const PATIENCE = 3_000;

export interface Storage {
  /** Whether what is put is kept beyond the page. */
  readonly lasting: boolean;
  get(key: string): Promise<unknown>;
  put(key: string, value: unknown): Promise<void>;
}

/** The page's storage. Its promises never reject. */
export async function openStorage(): Promise<Storage> {
  try {
    return new Kept(await open());
  } catch {
    return new Memory();
  }
}

function open(): Promise<IDBDatabase> {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, 1);
    const late = setTimeout(() => reject(new Error('blocked')), PATIENCE);
    request.onupgradeneeded = () => request.result.createObjectStore(ENTRIES);
    request.onsuccess = () => {
      clearTimeout(late);
      // A later version of the page may want to change it.
      request.result.onversionchange = () => request.result.close();
      resolve(request.result);
    };
    request.onerror = () => {
      clearTimeout(late);
      reject(request.error);
    };
  });
}

class Memory implements Storage {
  readonly lasting: boolean = false;
  readonly #entries = new Map<string, unknown>();

  async get(key: string): Promise<unknown> {
    return this.#entries.get(key);
  }

  async put(key: string, value: unknown): Promise<void> {
    this.#entries.set(key, value);
  }
}

class Kept implements Storage {
  lasting = true;
  readonly #database: IDBDatabase;
  /** What could not be written, so that it holds for as long as the page. */
  readonly #unwritten = new Map<string, unknown>();

  constructor(database: IDBDatabase) {
    this.#database = database;
  }

  async get(key: string): Promise<unknown> {
    if (this.#unwritten.has(key)) return this.#unwritten.get(key);
    try {
      return await this.#ask('readonly', (entries) => entries.get(key));
    } catch {
      return undefined;
    }
  }

  async put(key: string, value: unknown): Promise<void> {
    try {
      await this.#ask('readwrite', (entries) => entries.put(value, key));
      this.#unwritten.delete(key);
    } catch {
      this.lasting = false;
      this.#unwritten.set(key, value);
    }
  }

  #ask<T>(mode: IDBTransactionMode, act: (entries: IDBObjectStore) => IDBRequest<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const transaction = this.#database.transaction(ENTRIES, mode);
      const request = act(transaction.objectStore(ENTRIES));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = transaction.onerror = () => reject(transaction.error ?? new Error('aborted'));
    });
  }
}
