import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;

/**
 * Maps, strings and arrays on the heap of a default JVM, from two threads; prints checksums.
 *
 * <p>usage: java Heap.java [MIB] where MIB is roughly how much stays alive.
 */
public final class Heap {
    private static long fillAndCheck(int count, long seed) {
        Map<String, long[]> rows = new HashMap<>();
        List<String> names = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            String name = "row-" + i;
            names.add(name);
            rows.put(name, new long[] {i, i * 31L, seed, 0, 0, 0, 0, 0});
        }
        Random random = new Random(seed);
        for (int i = 0; i < count; i++) {
            rows.get(names.get(random.nextInt(count)))[3] += i;
            if (i % 64 == 0) {
                // Garbage for the collector, which then moves what stays alive.
                names.set(i, new String(names.get(i)));
            }
        }
        long sum = 0;
        for (int i = 0; i < count; i++) {
            long[] row = rows.get(names.get(i));
            if (row[0] != i || row[1] != i * 31L || row[2] != seed) {
                throw new IllegalStateException("row " + i + " holds " + Arrays.toString(row));
            }
            sum = sum * 31 + row[3];
        }
        return sum;
    }

    public static void main(String[] args) throws Exception {
        int mib = args.length > 0 ? Integer.parseInt(args[0]) : 100;
        int count = mib * 2600;
        long[] sums = new long[2];
        Thread[] threads = new Thread[2];
        for (int t = 0; t < threads.length; t++) {
            int mine = t;
            threads[t] = new Thread(() -> sums[mine] = fillAndCheck(count, 2012 + mine));
            threads[t].start();
        }
        for (Thread thread : threads) {
            thread.join();
        }
        System.out.println("rows " + count + " sums " + sums[0] + " " + sums[1]);
    }
}
