// What .NET programs append with: no O_APPEND, but a seek to the end.
using System;
using System.IO;

class Append {
    static void Main() {
        File.AppendAllText("events", "one\n");
        File.AppendAllText("events", "two\nthree\n");
        using (var writer = new StreamWriter("lines", append: true) { AutoFlush = true }) {
            writer.WriteLine("four");
            Console.Write(File.ReadAllText("count"));
            writer.WriteLine("five");
            Console.Write(File.ReadAllText("count"));
        }
        // The end moves: it is a guard.
        var late = new FileStream("events", FileMode.Append, FileAccess.Write, FileShare.ReadWrite);
        File.AppendAllText("events", "six\n");
        try {
            late.WriteByte((byte)'x');
            late.Flush();
            Console.WriteLine("written");
        } catch (IOException) {
            GC.SuppressFinalize(late);
            Console.WriteLine("refused");
        }
    }
}
