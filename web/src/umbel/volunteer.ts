// A volunteer in this page. The core forwards circuits; this file has the parts that only pages need: one tab at a time, pauses, the
// limit of the total, sleep, changes of network, and the stored total.
import { PageVolunteer } from '../../wasm/umbel.js';
import { chooseEngines, type SearchEngine, type SearchEngineState } from './engines';
import { asError, fromCore } from './failure';
import { load, requireWebRtc } from './module';
import { findNetwork, type Network } from './network';
import { Power } from './power';
import { openStorage, type Storage } from './storage';

/** The state of a volunteer. */
export interface VolunteerState {
  /** Whether the volunteer is turned on. */
  on: boolean;
  phase: 'off' | 'starting' | 'registering' | 'connecting' | 'reachable' | 'unreachable' | 'paused' | 'error';
  /** The reason for the phase, as text for the user. */
  why?: string;
  /** Number of gateways over which others can reach this relay now. */
  gateways: number;
  /** Number of circuits that this relay carries now. */
  circuits: number;
  /** Bytes forwarded in the last second. */
  bytesNow: number;
  /** Bytes forwarded in total, including earlier visits. */
  bytesTotal: number;
  /** The identity of this relay, in base 32. */
  identity?: string;
  /** The chosen engines, with their states. */
  searchEngines: SearchEngineState[];
  /** Searches answered for others since the page was loaded. */
  searches: number;
}

/** The limits that the user sets. */
export interface VolunteerLimits {
  /** Average rate of sending to relays, in bytes per second. Each forwarded byte is received once and sent once. */
  bytesPerSecond?: number;
  /** Forwarded bytes in total since the last change of this limit, including those of searches and of the engines' answers. */
  bytesTotal?: number;
  /** Whether to forward only while the device is plugged in. Has no effect in browsers that do not report this. */
  onlyOnPower?: boolean;
  /** Whether to forward only over unmetered networks. Has no effect in browsers that do not report this. */
  onlyUnmetered?: boolean;
  /**
   * Engines to query for others: names of engines in the network's description, or descriptions. None by default. Each engine sees this
   * browser's address with the queries of others. This browser reads the queries, but doesn't see who sent them.
   */
  searchEngines?: (string | SearchEngine)[];
}

/** A volunteer in this page. */
export interface Volunteer {
  readonly state: VolunteerState;
  /** Replaces all limits. Throws an `UmbelError` if an engine is unknown or can't be queried. */
  setLimits(limits: VolunteerLimits): void;
  /** Accepts no more circuits. Circuits in use continue for up to three seconds. The promise resolves when all channels are closed. */
  stop(): Promise<void>;
}

/** Options of {@link volunteer}. */
export interface VolunteerOptions {
  /** The network, or the URL of its description; `./umbel.json` beside the page by default. */
  network?: Network | string;
  limits?: VolunteerLimits;
  /** Receives each change of the state. */
  onstate: (state: VolunteerState) => void;
}

/** The state that the core reports. */
interface CoreState {
  phase: VolunteerState['phase'];
  why?: string;
  gateways: number;
  circuits: number;
  /** Bytes forwarded since the page was loaded. */
  bytes: number;
  identity: string;
  engines: SearchEngineState[];
  searches: number;
}

/** Name of the lock that the volunteer of a browser holds. */
const LOCK = 'umbel-volunteer';
/** Names of stored entries. */
const TOTAL = 'relayed';
const CERTIFICATE = 'certificate';
/** Interval at which the total is stored, in ms. */
const STORE_INTERVAL = 15_000;
/** Time in ms without a check after which the device counts as having slept. */
const SLEEP_THRESHOLD = 15_000;
const CHECK_INTERVAL = 2_000;
const DAY = 24 * 60 * 60 * 1000;

const OTHER_TAB = 'Another tab of this browser is the volunteer; this tab takes over when that one closes.';
const MEMORY_ONLY = 'This browser stores nothing for this page, so the next visit will be another volunteer.';

/** Disables the browser's list of fetched URLs, which would contain the queries of others. */
function disableResourceTiming(): void {
  performance.setResourceTimingBufferSize(0);
  performance.clearResourceTimings();
}

/** Makes this page a volunteer until it is stopped. */
export async function volunteer(options: VolunteerOptions): Promise<Volunteer> {
  requireWebRtc();
  const page = new Page(options.limits ?? {}, options.onstate);
  page.show({ phase: 'starting' });
  try {
    const [network, storage, power] = await Promise.all([
      findNetwork(options.network), openStorage(), Power.watch(), load(),
    ]);
    await page.begin(network, storage, power);
  } catch (error) {
    await page.stop();
    throw error;
  }
  return page;
}

class Page implements Volunteer {
  state: VolunteerState = {
    on: true, phase: 'starting', gateways: 0, circuits: 0, bytesNow: 0, bytesTotal: 0, searchEngines: [], searches: 0,
  };
  #limits: VolunteerLimits;
  readonly #onstate: (state: VolunteerState) => void;
  #core: PageVolunteer | undefined;
  /** Engines in the network's description. */
  #engines: SearchEngine[] = [];
  #storage: Storage | undefined;
  #power: Power | undefined;
  #running = false;
  #stopped = false;
  #ending: Promise<void> | undefined;
  /** Whether the browser may have cached the page. A cached page is no relay. */
  #cached = false;
  /** Whether this tab holds the lock of the browser's volunteer. */
  #holdsLock = false;
  /** Releases the lock. */
  #release: (() => void) | undefined;
  readonly #listening = new AbortController();
  #checkTimer: ReturnType<typeof setInterval> | undefined;
  /** Bytes forwarded in earlier visits. */
  #earlierBytes = 0;
  /** Bytes forwarded since the page was loaded. */
  #bytes = 0;
  /** The total at the last change of the limit `bytesTotal`. */
  #limitedFrom = 0;
  #storedAt = 0;
  #checkedAt = Date.now();
  #samples: { at: number; bytes: number }[] = [];

  constructor(limits: VolunteerLimits, onstate: (state: VolunteerState) => void) {
    this.#limits = limits;
    this.#onstate = onstate;
  }

  async begin(network: Network, storage: Storage, power: Power): Promise<void> {
    this.#storage = storage;
    this.#power = power;
    this.#engines = network.engines ?? [];
    const storedTotal = await storage.get(TOTAL);
    this.#earlierBytes = typeof storedTotal === 'number' && storedTotal >= 0 ? storedTotal : 0;
    this.#limitedFrom = this.#earlierBytes;
    await this.#takeLock();
    const certificate = await this.#certificate();
    this.#core = (await fromCore(
      PageVolunteer.make(network.directories, network.authorities, storage, certificate, (state: CoreState) =>
        this.#handleCoreState(state),
      ),
    )) as PageVolunteer;
    this.setLimits(this.#limits);
    this.#listen();
    this.#startOrPause();
  }

  setLimits(limits: VolunteerLimits): void {
    // Only these steps can fail, so they are first.
    const engines = chooseEngines(limits.searchEngines ?? [], this.#engines);
    if (engines.length > 0) disableResourceTiming();
    try {
      this.#core?.search_engines(engines.map(({ name }) => name), engines.map(({ description }) => description));
    } catch (error) {
      throw asError(error);
    }
    if (limits.bytesTotal !== this.#limits.bytesTotal) this.#limitedFrom = this.#earlierBytes + this.#bytes;
    this.#limits = { ...limits };
    const { bytesPerSecond } = limits;
    this.#core?.limit(bytesPerSecond && bytesPerSecond > 0 ? bytesPerSecond : undefined);
    this.#startOrPause();
  }

  stop(): Promise<void> {
    return (this.#ending ??= this.#end());
  }

  async #end(): Promise<void> {
    this.#stopped = true;
    clearInterval(this.#checkTimer);
    this.#power?.close();
    this.#listening.abort();
    // The state changes immediately, although circuits in use may continue.
    this.show({ on: false, phase: 'off', why: undefined, gateways: 0, circuits: 0, bytesNow: 0 });
    const leaving = new AbortController();
    addEventListener('pagehide', () => this.#core?.pause(''), { signal: leaving.signal });
    try {
      await this.#core?.finish();
    } finally {
      leaving.abort();
    }
    this.show({ bytesTotal: this.#earlierBytes + this.#bytes });
    // Another tab may now become the same relay.
    this.#release?.();
    await this.#storeTotal();
  }

  show(change: { [Key in keyof VolunteerState]?: VolunteerState[Key] | undefined }): void {
    const state = { ...this.state, ...change };
    if (state.why === undefined) delete state.why;
    this.state = state as VolunteerState;
    this.#onstate(this.state);
  }

  /** Handles a state of the core, and adds the page's own values. */
  #handleCoreState(core: CoreState): void {
    this.#bytes = core.bytes;
    if (this.#stopped) return;
    const { phase, gateways, circuits, identity, engines: searchEngines, searches } = core;
    const memoryOnly = phase === 'reachable' && this.#storage?.persistent === false ? MEMORY_ONLY : undefined;
    const bytesTotal = this.#earlierBytes + this.#bytes;
    const why = core.why ?? memoryOnly;
    this.show({ phase, why, gateways, circuits, identity, bytesTotal, bytesNow: this.#bytesNow(), searchEngines, searches });
    // Deferred, because the core must not be called within its callback.
    queueMicrotask(() => this.#startOrPause());
  }

  /** Bytes forwarded in the last second, from the samples of a little more than a second. */
  #bytesNow(): number {
    const at = performance.now();
    this.#samples.push({ at, bytes: this.#bytes });
    while (this.#samples.length > 2 && (this.#samples[1]?.at ?? at) < at - 1000) this.#samples.shift();
    const first = this.#samples[0];
    const elapsed = first ? at - first.at : 0;
    return first && elapsed > 100 ? Math.round(((this.#bytes - first.bytes) * 1000) / Math.max(elapsed, 1000)) : 0;
  }

  /** Starts or pauses the core, depending on the conditions. */
  #startOrPause(): void {
    if (this.#stopped || this.#cached || !this.#core) return;
    const why = this.#reasonToPause();
    if (why === undefined) {
      if (!this.#running) {
        this.#running = true;
        this.#core.start();
      }
    } else if (this.#running || this.state.phase !== 'paused' || this.state.why !== why) {
      this.#running = false;
      this.#core.pause(why);
    }
  }

  #reasonToPause(): string | undefined {
    const { bytesTotal, onlyOnPower, onlyUnmetered } = this.#limits;
    if (!this.#holdsLock) return OTHER_TAB;
    if (bytesTotal !== undefined && bytesTotal > 0 && this.#earlierBytes + this.#bytes - this.#limitedFrom >= bytesTotal) {
      return 'The amount that you set has been forwarded.';
    }
    if (onlyOnPower && this.#power?.onBattery) return 'This device runs on its battery.';
    if (onlyUnmetered && this.#power?.metered) return 'This network is metered, or the browser saves data.';
    if (navigator.onLine === false) return 'This device is offline.';
    return undefined;
  }

  #listen(): void {
    const { signal } = this.#listening;
    this.#power?.addEventListener('change', () => this.#startOrPause(), { signal });
    addEventListener('offline', () => this.#startOrPause(), { signal });
    // The addresses of another network differ, so the old links are lost.
    addEventListener('online', () => this.#restart(), { signal });
    document.addEventListener('visibilitychange', () => this.#check(), { signal });
    // Notifies the relays immediately, so that they need not wait for a timeout. The browser may cache and restore the page.
    addEventListener('pagehide', () => {
      void this.#storeTotal();
      this.#cached = true;
      this.#running = false;
      this.#core?.pause('');
    }, { signal });
    addEventListener('pageshow', () => {
      this.#cached = false;
      this.#startOrPause();
    }, { signal });
    this.#checkTimer = setInterval(() => this.#check(), CHECK_INTERVAL);
  }

  /** Detects sleep of the device, stores the total, and checks the conditions. */
  #check(): void {
    const now = Date.now();
    // Timers of a hidden page may run once a minute, while the links of the page stay open.
    const slept = now - this.#checkedAt > SLEEP_THRESHOLD && !document.hidden;
    this.#checkedAt = now;
    if (slept && this.state.gateways === 0) this.#restart();
    if (now - this.#storedAt > STORE_INTERVAL) void this.#storeTotal();
    this.#startOrPause();
  }

  #restart(): void {
    if (this.#running) this.#core?.start();
    else this.#startOrPause();
  }

  async #storeTotal(): Promise<void> {
    this.#storedAt = Date.now();
    if (this.#bytes > 0) await this.#storage?.put(TOTAL, this.#earlierBytes + this.#bytes);
  }

  /** Takes the lock of the volunteer, or waits for it in the background, because two tabs must not have one identity. */
  async #takeLock(): Promise<void> {
    const { locks } = navigator;
    if (!locks) {
      this.#holdsLock = true;
      return;
    }
    const released = new Promise<void>((resolve) => (this.#release = resolve));
    const hold = async (lock: Lock | null) => {
      if (!lock) return false;
      // The volunteer was stopped while it waited for the lock.
      if (this.#stopped) return true;
      this.#holdsLock = true;
      await released;
      return true;
    };
    await new Promise<void>((decided) => {
      const first = async (lock: Lock | null) => {
        const held = hold(lock);
        decided();
        return held;
      };
      void locks.request(LOCK, { ifAvailable: true }, first).then((held) => {
        if (held) return;
        const { signal } = this.#listening;
        const later = async (lock: Lock | null) => {
          const storedTotal = await this.#storage?.get(TOTAL);
          if (typeof storedTotal === 'number') this.#earlierBytes = storedTotal - this.#bytes;
          const held = hold(lock);
          this.#startOrPause();
          return held;
        };
        return locks.request(LOCK, { signal }, later);
      }).catch(() => decided());
    });
  }

  /** The certificate that this volunteer presents to its neighbours, the same until it expires. */
  async #certificate(): Promise<RTCCertificate | undefined> {
    try {
      const stored = await this.#storage?.get(CERTIFICATE);
      if (stored instanceof RTCCertificate && stored.expires > Date.now() + DAY) return stored;
      const created = await RTCPeerConnection.generateCertificate({ name: 'ECDSA', namedCurve: 'P-256' } as EcKeyGenParams);
      await this.#storage?.put(CERTIFICATE, created);
      return created;
    } catch {
      // Without a certificate, the browser creates one for each link.
      return undefined;
    }
  }
}
