// The persistent storage of a page: named entries in IndexedDB. If the browser denies that, or its space is full, entries stay in
// memory until the page ends.

const DATABASE = 'umbel';
const ENTRIES = 'entries';
/** Time limit for opening the database, in ms. An upgrade in another tab may block it. */
const OPEN_TIMEOUT = 3_000;

export interface Storage {
  /** Whether stored entries outlast the page. */
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
    const late = setTimeout(() => reject(new Error('blocked')), OPEN_TIMEOUT);
    request.onupgradeneeded = () => request.result.createObjectStore(ENTRIES);
    request.onsuccess = () => {
      clearTimeout(late);
      // A later version of the page can upgrade the database only when it is closed here.
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
  /** Entries that could not be written, kept until the page ends. */
  readonly #unwritten = new Map<string, unknown>();

  constructor(database: IDBDatabase) {
    this.#database = database;
  }

  async get(key: string): Promise<unknown> {
    if (this.#unwritten.has(key)) return this.#unwritten.get(key);
    try {
      return await this.#run('readonly', (entries) => entries.get(key));
    } catch {
      return undefined;
    }
  }

  async put(key: string, value: unknown): Promise<void> {
    try {
      await this.#run('readwrite', (entries) => entries.put(value, key));
      this.#unwritten.delete(key);
    } catch {
      this.lasting = false;
      this.#unwritten.set(key, value);
    }
  }

  #run<T>(mode: IDBTransactionMode, action: (entries: IDBObjectStore) => IDBRequest<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const transaction = this.#database.transaction(ENTRIES, mode);
      const request = action(transaction.objectStore(ENTRIES));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = transaction.onerror = () => reject(transaction.error ?? new Error('aborted'));
    });
  }
}
