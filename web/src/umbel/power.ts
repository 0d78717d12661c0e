// The browser's information about power and the cost of the network. Without information, the device counts as plugged in and the
// network as unmetered.

interface Battery extends EventTarget { readonly charging: boolean }
interface Connection extends EventTarget { readonly type?: string; readonly saveData?: boolean }

/** Reports the conditions of the device, and dispatches `change` events. */
export class Power extends EventTarget {
  readonly #battery: Battery | undefined;
  readonly #connection: Connection | undefined;
  readonly #listening = new AbortController();

  private constructor(battery: Battery | undefined, connection: Connection | undefined) {
    super();
    this.#battery = battery;
    this.#connection = connection;
    const { signal } = this.#listening;
    const notify = () => this.dispatchEvent(new Event('change'));
    battery?.addEventListener('chargingchange', notify, { signal });
    connection?.addEventListener('change', notify, { signal });
  }

  static async watch(): Promise<Power> {
    const source = navigator as { getBattery?: () => Promise<Battery>; connection?: Connection };
    const battery = await source.getBattery?.().catch(() => undefined);
    return new Power(battery, source.connection);
  }

  get onBattery(): boolean {
    return this.#battery?.charging === false;
  }

  get metered(): boolean {
    return this.#connection?.saveData === true || this.#connection?.type === 'cellular';
  }

  close(): void {
    this.#listening.abort();
  }
}
